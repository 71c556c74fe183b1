"""What the server answers, as JSON."""

from __future__ import annotations

from pydantic import BaseModel, Field


class Answer(BaseModel):
    """What the model says of a clip."""

    name: str = Field(description="of the clip, as it was given")
    emotion: str = Field(description="the likeliest")
    probabilities: dict[str, float] = Field(description="of every emotion, the likeliest first")
    skipped: dict[str, int] = Field(description="windows that were left out, by reason")
    picture: str | None = Field(
        description="SVG: what decided, and when; it adapts to light and dark"
    )


class Refusal(BaseModel):
    """Why a clip cannot be used."""

    name: str = Field(description="of the clip, as it was given")
    reason: str = Field(description="a category")
    details: str = Field(description="what was found")
    advice: str = Field(description="what to do about it")


class Problem(BaseModel):
    """Why a request was not let in."""

    detail: str


class Paths(BaseModel):
    """Clips on the server's side."""

    paths: list[str] = Field(
        description="relative to the folder that the server was given as its root"
    )


class Answers(BaseModel):
    """One for each path, in their order."""

    results: list[Answer | Refusal]


class About(BaseModel):
    """What the server has."""

    version: str
    emotions: list[str]
    streams: list[str] = Field(description="what the model attends to")
    megabytes: int = Field(description="of an upload at most")
    seconds: float = Field(description="of a clip at most")
    paths: bool = Field(description="whether clips can be given by path")
