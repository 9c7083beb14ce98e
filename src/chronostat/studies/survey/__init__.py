"""The stages of requests under one or several arms, a model with a setting each: what ``chronostat measure`` shows."""

from chronostat.studies.survey.arms import Arm, Plan, Shot
from chronostat.studies.survey.protocol import repeated, survey
from chronostat.studies.survey.requests import Requests
from chronostat.studies.survey.result import STAGES, Column, Survey

__all__ = ["STAGES", "Arm", "Column", "Plan", "Requests", "Shot", "Survey", "repeated", "survey"]
