"""Whether a recorded result comes out again: machine and versions checked, runs made again, cell by cell compared."""
