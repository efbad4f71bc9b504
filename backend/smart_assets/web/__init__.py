"""The pages people look at: the gallery, Swagger UI and ReDoc."""
