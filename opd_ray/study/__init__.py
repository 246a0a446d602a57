"""A study: rules x seeds from one warmed-up student, with equal token budgets and prompts."""
