-- Returns the cached message of a group behind its version, and its TTL in milliseconds; false if there is none.
--
-- KEYS: cached message of the group
local versioned = redis.call('GET', KEYS[1])
return versioned and { versioned, redis.call('PTTL', KEYS[1]) }
