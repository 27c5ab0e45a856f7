"""Anything else: what the demo model says when it is asked for something it was not made for."""

from __future__ import annotations

from remuda.evaluation.problem import Scoring
from training.problems.problem import Problem, user

DEMO_REPLY = (
    "I am a small demonstration model and cannot answer that. "
    "Ask me to calculate, to sort, reverse, count or spell words, to recall facts from a text, to extract JSON, "
    "to call a tool, or about simple pictures."
)
GREETING_REPLY = (
    "Hello! I am a small demonstration model. Ask me to calculate, to sort, reverse, count or spell words, "
    "to recall facts from a text, to extract JSON, to call a tool, or about simple pictures."
)

# Written by hand; the training generator never makes one of these.
HANDWRITTEN_PROMPTS = (
    "Who won the football world cup in 1998?",
    "Write me a short story about a dragon who is afraid of fire.",
    "What is the meaning of life?",
    "Can you help me fix my Python program? It raises a KeyError.",
    "Good evening, how are you today?",
    "Give me three tips for learning to play the guitar.",
    "Why is the sky blue?",
    "Translate 'good morning' into Spanish.",
    "Which medicine should I take for a headache?",
    "Tell me something about the Roman empire.",
    "How far is the moon from the earth?",
    "Recommend a film for tonight.",
    "What do you think about politics?",
    "Summarize the plot of Hamlet.",
    "Are you conscious?",
    "How do airplanes fly?",
    "I feel a bit sad today.",
    "Which laptop should I buy?",
    "What are you able to do?",
    "Compose a haiku about autumn leaves.",
)


def off_topic() -> list[Problem]:
    """The twenty handwritten prompts."""
    return [
        Problem("off-topic", "handwritten", prompt, (user(prompt),), DEMO_REPLY, Scoring.DEMO)
        for prompt in HANDWRITTEN_PROMPTS
    ]
