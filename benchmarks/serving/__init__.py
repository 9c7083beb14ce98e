"""What does serving add, and are budgets kept by those who wait?"""
