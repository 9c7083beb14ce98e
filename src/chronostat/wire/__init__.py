"""The chat protocol of OpenAI: requests read strictly, answers and errors written. No torch in here."""
