"""What every service process needs: background loops, outages, limits of the machine, secrets."""
