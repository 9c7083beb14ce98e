"""The stand-in run that these tests share."""

from stand_ins.runs import stand_in

__all__ = ["stand_in"]
