"""The catalogue as it begins: assets, their tags, totals by storage, leases.

Revision ID: 0001
Revises:
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "assets",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("owner", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("storage", sa.String(length=64), nullable=False),
        sa.Column("visibility", sa.String(length=16), nullable=False),
        sa.Column("filename", sa.String(length=1024), nullable=True),
        sa.Column("filename_folded", sa.Text(), nullable=True),
        sa.Column("format", sa.String(length=8), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("variants", sa.JSON(), nullable=False),
        sa.Column("tags", sa.JSON(), nullable=False),
        sa.Column("metadata", sa.JSON(), nullable=False),
        sa.Column("thumbhash", sa.String(length=64), nullable=True),
        sa.Column("dominant_color", sa.String(length=7), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("target_visibility", sa.String(length=16), nullable=True),
        sa.Column("lease", sa.String(length=64), nullable=True),
        sa.CheckConstraint("state IN ('pending', 'ready', 'moving', 'deleting')", name=op.f("ck_assets_state")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_assets")),
    )
    op.create_index("ix_assets_owner_id", "assets", ["owner", "id"], unique=False)
    op.create_index("ix_assets_owner_storage_id", "assets", ["owner", "storage", "id"], unique=False)
    op.create_index("ix_assets_owner_visibility_id", "assets", ["owner", "visibility", "id"], unique=False)
    op.create_index("ix_assets_storage_id", "assets", ["storage", "id"], unique=False)
    op.create_index(
        "ix_assets_unsettled",
        "assets",
        ["state", "lease"],
        unique=False,
        sqlite_where=sa.text("state != 'ready'"),
        postgresql_where=sa.text("state != 'ready'"),
    )
    op.create_table(
        "leases",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("beat", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_leases")),
    )
    op.create_table(
        "storage_totals",
        sa.Column("storage", sa.String(length=64), nullable=False),
        sa.Column("assets", sa.BigInteger(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("storage", name=op.f("pk_storage_totals")),
    )
    op.create_table(
        "asset_tags",
        sa.Column("owner", sa.String(length=64), nullable=False),
        sa.Column("tag", sa.String(length=64), nullable=False),
        sa.Column("asset_id", sa.Uuid(), nullable=False),
        sa.ForeignKeyConstraint(
            ["asset_id"], ["assets.id"], name=op.f("fk_asset_tags_asset_id_assets"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("owner", "tag", "asset_id", name=op.f("pk_asset_tags")),
    )
    op.create_index("ix_asset_tags_asset_id", "asset_tags", ["asset_id"], unique=False)


def downgrade() -> None:
    op.drop_table("asset_tags")
    op.drop_table("storage_totals")
    op.drop_table("leases")
    op.drop_table("assets")
