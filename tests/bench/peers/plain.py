"""The peer: the same three routes as most would write them today, and as one would be content with.

FastAPI, SQLAlchemy 2 and psycopg; pydantic models for answers; offset pages and `count(*)`. It has
the indexes that its questions want, selects only the columns that it shows, and has no access log.
"""

from __future__ import annotations

import os
import uuid
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query
from pydantic import BaseModel, ConfigDict
from sqlalchemy import ColumnElement, create_engine, func, select
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker
from sqlalchemy.types import DateTime, String, Text

engine = create_engine(
    os.environ["PEER_DSN"].replace("postgresql://", "postgresql+psycopg://", 1),
    pool_size=8,
    max_overflow=8,
)
new_session = sessionmaker(engine)
app = FastAPI()

State = Literal["pending", "approved", "executing", "completed", "failed", "rejected"]


class Base(DeclarativeBase):
    pass


class Task(Base):
    __tablename__ = "tasks"

    task_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    project_id: Mapped[uuid.UUID | None]
    request_text: Mapped[str] = mapped_column(Text)
    created_by: Mapped[str | None] = mapped_column(String(255))
    status: Mapped[str] = mapped_column(String(20))
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    approved_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    completed_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    services_touched: Mapped[list[str]] = mapped_column(ARRAY(Text))
    outcome: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    estimated_resources: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    actual_resources: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    external_ai_used: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    error_message: Mapped[str | None] = mapped_column(Text)
    suggestions: Mapped[list[Any] | None] = mapped_column(JSONB)


class TaskSummary(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    task_id: uuid.UUID
    status: State
    request_text: str
    services_touched: list[str]
    outcome: dict[str, Any] | None
    created_at: datetime
    completed_at: datetime | None
    error_message: str | None


class TaskPage(BaseModel):
    tasks: list[TaskSummary]
    total: int
    limit: int
    offset: int


Limit = Annotated[int, Query(ge=1, le=1000)]
Offset = Annotated[int, Query(ge=0)]
Days = Annotated[int | None, Query(ge=1, le=365)]
Services = Annotated[list[str] | None, Query()]


@app.get("/api/v1/audit/failures")
def get_failures(
    days: Annotated[int, Query(ge=1, le=90)] = 7,
    service: Services = None,
    limit: Limit = 100,
    offset: Offset = 0,
) -> TaskPage:
    return list_tasks("failed", service, None, days, limit, offset)


@app.get("/api/v1/audit/by-service/{service_name}")
def get_by_service(
    service_name: str,
    status: State | None = None,
    days: Days = None,
    limit: Limit = 100,
    offset: Offset = 0,
) -> TaskPage:
    return list_tasks(status, [service_name], None, days, limit, offset)


@app.get("/api/v1/audit/query")
def audit_query(
    status: State | None = None,
    service: Services = None,
    intent: str | None = None,
    days: Days = None,
    limit: Limit = 100,
    offset: Offset = 0,
) -> TaskPage:
    return list_tasks(status, service, intent, days, limit, offset)


def list_tasks(
    status: str | None,
    services: list[str] | None,
    intent: str | None,
    days: int | None,
    limit: int,
    offset: int,
) -> TaskPage:
    conditions: list[ColumnElement[bool]] = []
    if status is not None:
        conditions.append(Task.status == status)
    if services:
        conditions.append(Task.services_touched.contains(services))
    if intent is not None:
        conditions.append(Task.outcome["action_type"].astext == intent)
    if days is not None:
        now = datetime.now(UTC).replace(microsecond=0)
        conditions.append(Task.created_at > now - timedelta(days=days))
    columns = [getattr(Task, name) for name in TaskSummary.model_fields]
    page = (
        select(*columns)
        .where(*conditions)
        .order_by(Task.created_at.desc(), Task.task_id.desc())
        .limit(limit)
        .offset(offset)
    )
    # Not a dependency of the routes: its end would want a thread while all threads wait for it.
    with new_session() as session:
        total = session.scalar(select(func.count()).select_from(Task).where(*conditions))
        rows = session.execute(page).all()
    return TaskPage(
        tasks=[TaskSummary.model_validate(row) for row in rows],
        total=total or 0,
        limit=limit,
        offset=offset,
    )
