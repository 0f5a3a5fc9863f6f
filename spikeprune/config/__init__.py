"""Keys with their defaults, and how files and arguments become one checked configuration; what a run does with it is in
`experiment/build`."""
