"""Tickets with which one file may be uploaded without a key.

Revision ID: 0006
Revises: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.create_table(
        "upload_tickets",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("owner", sa.String(length=64), nullable=False),
        sa.Column("key_id", sa.Uuid(), nullable=True),
        sa.Column("storage", sa.String(length=64), nullable=False),
        sa.Column("incoming", sa.String(length=200), nullable=True),
        sa.Column("max_bytes", sa.BigInteger(), nullable=False),
        sa.Column("wanted", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("claim", sa.String(length=64), nullable=True),
        sa.Column("outcome", sa.JSON(none_as_null=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_upload_tickets")),
    )
    op.create_index("ix_upload_tickets_expires_at", "upload_tickets", ["expires_at"], unique=False)
    op.create_index(
        "ix_upload_tickets_claim",
        "upload_tickets",
        ["claim"],
        unique=False,
        sqlite_where=sa.text("claim IS NOT NULL"),
        postgresql_where=sa.text("claim IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("ix_upload_tickets_claim", table_name="upload_tickets")
    op.drop_index("ix_upload_tickets_expires_at", table_name="upload_tickets")
    op.drop_table("upload_tickets")
