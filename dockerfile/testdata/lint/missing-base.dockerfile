FROM missing AS X
