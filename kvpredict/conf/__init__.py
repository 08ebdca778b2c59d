"""The configuration tree of the command line: every parameter stands here in a yaml file, with a comment."""
