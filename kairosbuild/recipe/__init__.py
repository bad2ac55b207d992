"""From YAML text to declarations: located values, typed fields, variables, workspace and lock files."""
