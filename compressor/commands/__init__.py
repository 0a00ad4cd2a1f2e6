"""The longer commands of the command line, a file each: their options and what is done with them."""
