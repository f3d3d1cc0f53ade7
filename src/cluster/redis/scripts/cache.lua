-- Publishes a message on a group's topic and caches it, both under a new version.
--
-- KEYS: version of the partition, cached message of the group
-- ARGV: publish, topic of the group, TTL in milliseconds, message
local version = next_version(KEYS[1])
local versioned = string.rep('0', 20 - #version) .. version .. ARGV[4]
redis.call('SET', KEYS[2], versioned, 'PX', ARGV[3])
redis.call(ARGV[1], ARGV[2], '1K' .. versioned)
return 1
