-- What is kept of a group, and for how many milliseconds still; nothing: false.
--
-- KEYS: what is kept of the group
local numbered = redis.call('GET', KEYS[1])
return numbered and { numbered, redis.call('PTTL', KEYS[1]) }
