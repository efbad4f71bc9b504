"""Images: deciding what bytes are, and making sizes of them."""
