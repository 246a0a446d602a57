"""What is known of models without loading them: shapes, tokenizers, pairs to try things with."""
