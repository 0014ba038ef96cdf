"""Instruction synthesis: the paper's tasks I0 to I4 as text, with label lists made by the teacher."""
