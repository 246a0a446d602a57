"""What every answer of a teacher must be, checked before anything is made of it."""
