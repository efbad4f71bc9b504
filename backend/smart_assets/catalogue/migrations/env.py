"""Run by Alembic: migrations over the connection the program hands over."""

from alembic import context

from smart_assets.catalogue.models import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
