"""Files of any package: strict JSON and atomic writes; formats of one package belong there."""
