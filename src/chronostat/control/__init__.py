"""What learns: the observation, rewards, learners, the trainer and the controller that comes out."""
