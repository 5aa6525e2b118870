"""What goes to the Hub: repositories, cards and licences."""
