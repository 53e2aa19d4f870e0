"""Thin hooks into other people's packages: ``transformers``.

Each is a module or package of its own, named after the package that it serves, and is imported by name:
``from distillrs.integrations import transformers``. None of them imports its package before it is used.
"""
