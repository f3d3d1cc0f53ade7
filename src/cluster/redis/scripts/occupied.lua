-- Returns the names of occupied groups that start with a prefix, each followed by the number of its members.
--
-- KEYS: occupied groups of the partition. The keys of their members are built here; they are in the same slot.
-- ARGV: prefix, prefix of the partition's keys
local found = {}
-- No name contains the byte 255, because names are UTF-8.
for _, name in ipairs(redis.call('ZRANGEBYLEX', KEYS[1], '[' .. ARGV[1], '(' .. ARGV[1] .. '\255')) do
  found[#found + 1] = name
  found[#found + 1] = redis.call('HLEN', ARGV[2] .. 'm:' .. name)
end
return found
