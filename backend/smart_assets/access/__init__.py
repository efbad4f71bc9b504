"""Who may: keys, and signatures over URLs."""
