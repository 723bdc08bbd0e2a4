return step[ARGV[1]](unpack(ARGV, 2))
