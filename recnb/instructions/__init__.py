"""Instruction synthesis: the paper's tasks I0 to I4 as text, labelled by the teacher."""
