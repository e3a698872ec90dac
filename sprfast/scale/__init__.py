"""sprfast on more than one process or machine, each way in a module that is imported only where it is asked for."""
