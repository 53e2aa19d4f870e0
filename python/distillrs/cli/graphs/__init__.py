"""``distillrs condense`` for graphs: the same command, folder and report for methods of the engine "graphs"."""
