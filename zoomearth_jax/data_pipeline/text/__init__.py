"""Text: chat templates, the protocol of replies, tokenizers and what lies beside them."""
