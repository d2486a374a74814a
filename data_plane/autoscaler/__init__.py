"""The autoscaler: holds as many replicas of every model as its capacity target asks for."""
