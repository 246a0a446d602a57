"""The teacher: its protocol, its kinds, the actor that holds one, and the coordinator's pool."""
