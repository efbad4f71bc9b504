"""The use-cases: taking uploads in, keeping the library, handing bytes out."""
