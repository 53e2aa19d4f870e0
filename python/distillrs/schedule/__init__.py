"""Pure functions of the step: ramps and windows."""
