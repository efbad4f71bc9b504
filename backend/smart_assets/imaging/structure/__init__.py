"""The structure of each format: `read_info` walks it, `without_metadata` plans the same file with less in it.

Every size and offset is whatever an attacker likes: each walk goes forward only, in a bounded number of steps, and
what does not add up is CorruptImage.
"""
