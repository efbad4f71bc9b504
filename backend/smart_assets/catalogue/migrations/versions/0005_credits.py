"""Credits: what owners have, what they were charged, and what each asset cost.

Revision ID: 0005
Revises: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("assets", sa.Column("credits_reserved", sa.BigInteger(), nullable=True))
    op.add_column("assets", sa.Column("credits_used", sa.BigInteger(), nullable=True))
    op.create_table(
        "credit_accounts",
        sa.Column("owner", sa.String(length=64), nullable=False),
        sa.Column("balance", sa.BigInteger(), nullable=False),
        sa.Column("reserved", sa.BigInteger(), nullable=False),
        sa.Column("spent", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("reserved >= 0 AND balance >= reserved", name=op.f("ck_credit_accounts_covered")),
        sa.PrimaryKeyConstraint("owner", name=op.f("pk_credit_accounts")),
    )
    op.create_table(
        "credit_entries",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("owner", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("asset_id", sa.Uuid(), nullable=True),
        sa.Column("key_id", sa.Uuid(), nullable=True),
        sa.Column("note", sa.String(length=200), nullable=True),
        sa.Column("request", sa.String(length=64), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_credit_entries")),
    )
    op.create_index("ix_credit_entries_owner_id", "credit_entries", ["owner", "id"], unique=False)
    op.create_index("ix_credit_entries_request", "credit_entries", ["request"], unique=True)
    op.create_table(
        "credit_usage",
        sa.Column("owner", sa.String(length=64), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("key_id", sa.String(length=36), nullable=False),
        sa.Column("originals", sa.BigInteger(), nullable=False),
        sa.Column("sizes", sa.BigInteger(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("credits", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("owner", "day", "key_id", name=op.f("pk_credit_usage")),
    )


def downgrade() -> None:
    op.drop_table("credit_usage")
    op.drop_index("ix_credit_entries_request", table_name="credit_entries")
    op.drop_index("ix_credit_entries_owner_id", table_name="credit_entries")
    op.drop_table("credit_entries")
    op.drop_table("credit_accounts")
    op.drop_column("assets", "credits_used")
    op.drop_column("assets", "credits_reserved")
