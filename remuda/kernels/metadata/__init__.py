"""Attention metadata of a decode step, made on the device from what it keeps of every slot."""
