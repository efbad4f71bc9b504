"""Smart Assets: upload an image once, get the sizes asked for, store them anywhere, leave nothing behind."""
