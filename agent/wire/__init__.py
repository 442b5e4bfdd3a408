"""What travels: topics, messages, programs and tensors. Pure: bytes in, values out."""
