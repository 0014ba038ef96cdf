"""A course out of the kit: copies of the notebooks, a grader, and what holds a student's code.

docs/course.md says how to teach with it. Nothing is imported here: the grader's helper process
(``recnb.course.runner``) must hold none of the kit's own answers.
"""
