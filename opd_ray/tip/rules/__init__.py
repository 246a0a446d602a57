"""The selection rules, one a file: its name is the rule's name, its ``score`` the rule."""
