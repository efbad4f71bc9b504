"""Pinned assets, moves between storages, and what jobs did last.

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    # Added, not rebuilt: neither database copies a table for columns that are empty or have a constant default.
    op.add_column("assets", sa.Column("pinned", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column("assets", sa.Column("target_storage", sa.String(length=64), nullable=True))
    op.create_index(
        "ix_assets_storage_expires_at_id",
        "assets",
        ["storage", "expires_at", "id"],
        unique=False,
        sqlite_where=sa.text("expires_at IS NOT NULL"),
        postgresql_where=sa.text("expires_at IS NOT NULL"),
    )
    op.create_table(
        "job_runs",
        sa.Column("job", sa.String(length=32), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("outcome", sa.JSON(none_as_null=True), nullable=True),
        sa.PrimaryKeyConstraint("job", name=op.f("pk_job_runs")),
    )


def downgrade() -> None:
    op.drop_table("job_runs")
    op.drop_index("ix_assets_storage_expires_at_id", table_name="assets")
    op.drop_column("assets", "target_storage")
    op.drop_column("assets", "pinned")
