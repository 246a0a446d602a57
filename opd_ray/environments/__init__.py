"""Environments that a student acts in: protocol, tool calls, and the text between turns."""
