"""The first schema: ledger, people, projects, items and work."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "head",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_head"))
    op.execute(f"INSERT INTO head (id, seq, hash) VALUES (1, 0, '{'0' * 64}')")  # the chain begins here
    op.create_table(
        "hits",
        sa.Column("bucket", sa.String(length=200), nullable=False),
        sa.Column("ends", sa.Double(), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("bucket", "ends", name="pk_hits"))
    op.create_table(
        "log",
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("actor", sa.String(length=200), nullable=False),
        sa.Column("subject", sa.String(length=200), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("previous", sa.String(length=64), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_log"))
    op.create_index("ix_log_subject", "log", ["subject"], unique=False)
    op.create_table(
        "people",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("title", sa.String(length=200), nullable=False),
        sa.Column("role", sa.String(length=20), nullable=False),
        sa.Column("password", sa.Text(), nullable=False),
        sa.Column("skills", sa.Text(), nullable=False),
        sa.Column("languages", sa.Text(), nullable=False),
        sa.Column("opt_outs", sa.Text(), nullable=False),
        sa.Column("daily_limit", sa.Integer(), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("locked_until", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_people"))
    op.create_table(
        "projects",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("title", sa.String(length=200), nullable=False),
        sa.Column("rubric", sa.String(length=100), nullable=False),
        sa.Column("settings", sa.Text(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_projects"))
    op.create_table(
        "rubrics",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", "version", name="pk_rubrics"))
    op.create_table(
        "contents",
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("salt", sa.String(length=64), nullable=True),
        sa.Column("content", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["seq"], ["log.seq"], name="fk_contents_seq"),
        sa.PrimaryKeyConstraint("seq", name="pk_contents"))
    op.create_table(
        "links",
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("person", sa.String(length=64), nullable=False),
        sa.Column("expires", sa.Double(), nullable=False),
        sa.Column("used", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["person"], ["people.name"], name="fk_links_person"),
        sa.PrimaryKeyConstraint("digest", name="pk_links"))
    op.create_table(
        "sessions",
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("person", sa.String(length=64), nullable=False),
        sa.Column("csrf", sa.String(length=64), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("expires", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["person"], ["people.name"], name="fk_sessions_person"),
        sa.PrimaryKeyConstraint("digest", name="pk_sessions"))
    op.create_index("ix_sessions_person", "sessions", ["person"], unique=False)
    op.create_table(
        "tokens",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("person", sa.String(length=64), nullable=False),
        sa.Column("title", sa.String(length=200), nullable=False),
        sa.Column("scopes", sa.Text(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("expires", sa.Double(), nullable=True),
        sa.Column("revoked", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["person"], ["people.name"], name="fk_tokens_person"),
        sa.PrimaryKeyConstraint("id", name="pk_tokens"),
        sa.UniqueConstraint("digest", name="uq_tokens_digest"))
    op.create_index("ix_tokens_person", "tokens", ["person"], unique=False)
    op.create_table(
        "items",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("project", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("batch", sa.Integer(), nullable=False),
        sa.Column("place", sa.BigInteger(), nullable=False),
        sa.Column("language", sa.String(length=35), nullable=False),
        sa.Column("skill", sa.String(length=64), nullable=False),
        sa.Column("gold", sa.Text(), nullable=True),
        sa.Column("attention", sa.Boolean(), nullable=False),
        sa.Column("special", sa.Boolean(), nullable=False),
        sa.Column("overlap", sa.Integer(), nullable=False),
        sa.Column("done", sa.Integer(), nullable=False),
        sa.Column("full", sa.Boolean(), nullable=False),
        sa.Column("arm", sa.String(length=20), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["project"], ["projects.name"], name="fk_items_project"),
        sa.ForeignKeyConstraint(["seq"], ["contents.seq"], name="fk_items_seq"),
        sa.PrimaryKeyConstraint("id", name="pk_items"))
    op.create_index("ix_items_project_full_special_batch_place", "items", ["project", "full", "special",
        "batch", "place"], unique=False)
    op.create_table(
        "item_harms",
        sa.Column("item", sa.String(length=64), nullable=False),
        sa.Column("category", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["item"], ["items.id"], name="fk_item_harms_item"),
        sa.PrimaryKeyConstraint("item", "category", name="pk_item_harms"))
    op.create_table(
        "leases",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("item", sa.String(length=64), nullable=False),
        sa.Column("person", sa.String(length=64), nullable=False),
        sa.Column("project", sa.String(length=64), nullable=False),
        sa.Column("purpose", sa.String(length=20), nullable=False),
        sa.Column("shown", sa.Text(), nullable=False),
        sa.Column("rubric", sa.String(length=100), nullable=False),
        sa.Column("granted", sa.Double(), nullable=False),
        sa.Column("expires", sa.Double(), nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("draft", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["item"], ["items.id"], name="fk_leases_item"),
        sa.ForeignKeyConstraint(["person"], ["people.name"], name="fk_leases_person"),
        sa.ForeignKeyConstraint(["project"], ["projects.name"], name="fk_leases_project"),
        sa.PrimaryKeyConstraint("id", name="pk_leases"),
        sa.UniqueConstraint("item", "person", name="uq_leases_item_person"))
    op.create_index("ix_leases_item_state_expires", "leases", ["item", "state", "expires"], unique=False)
    op.create_index("ix_leases_person_project_state", "leases", ["person", "project", "state"], unique=False)
    op.create_table(
        "submissions",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("project", sa.String(length=64), nullable=False),
        sa.Column("item", sa.String(length=64), nullable=False),
        sa.Column("person", sa.String(length=64), nullable=False),
        sa.Column("lease", sa.String(length=64), nullable=False),
        sa.Column("key", sa.String(length=200), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("follows", sa.String(length=64), nullable=True),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["follows"], ["submissions.id"], name="fk_submissions_follows"),
        sa.ForeignKeyConstraint(["item"], ["items.id"], name="fk_submissions_item"),
        sa.ForeignKeyConstraint(["lease"], ["leases.id"], name="fk_submissions_lease"),
        sa.ForeignKeyConstraint(["person"], ["people.name"], name="fk_submissions_person"),
        sa.ForeignKeyConstraint(["project"], ["projects.name"], name="fk_submissions_project"),
        sa.ForeignKeyConstraint(["seq"], ["log.seq"], name="fk_submissions_seq"),
        sa.PrimaryKeyConstraint("id", name="pk_submissions"),
        sa.UniqueConstraint("follows", name="uq_submissions_follows"),
        sa.UniqueConstraint("person", "key", name="uq_submissions_person_key"),
        sa.UniqueConstraint("seq", name="uq_submissions_seq"))
    op.create_index("ix_submissions_item", "submissions", ["item"], unique=False)
    op.create_index("ix_submissions_person_at", "submissions", ["person", "at"], unique=False)
    op.create_index("ix_submissions_project_seq", "submissions", ["project", "seq"], unique=False)
    op.create_index("uq_submissions_standing", "submissions", ["lease", "round"], unique=True,
        sqlite_where=sa.text("follows IS NULL"), postgresql_where=sa.text("follows IS NULL"))
