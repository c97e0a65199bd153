"""Conversations: turns of text and speech, and how a chat template makes a sequence of them (SPEC 7).

turns       what a conversation is, and its messages in the OpenAI form
template    turns -> stretches of text and speech, and which of them the assistant says
"""

from megatron_lst.chat.template import MARKERS, ChatFormat, ChatTemplate
from megatron_lst.chat.turns import BadConversation, Said, Speech, Stretch, Text, Turn

__all__ = ["MARKERS", "BadConversation", "ChatFormat", "ChatTemplate", "Said", "Speech", "Stretch", "Text", "Turn"]
