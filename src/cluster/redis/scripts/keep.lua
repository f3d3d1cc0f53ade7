-- Sends a message on a group's topic and keeps it, both under a new number.
--
-- KEYS: version of the partition, what is kept of the group
-- ARGV: publish, topic of the group, for how many milliseconds, message
local version = next_version(KEYS[1])
local numbered = string.rep('0', 20 - #version) .. version .. ARGV[4]
redis.call('SET', KEYS[2], numbered, 'PX', ARGV[3])
redis.call(ARGV[1], ARGV[2], '1K' .. numbered)
return 1
