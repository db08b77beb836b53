/* The peer of an echo server: sends every further argument, waits until it comes back, and closes.
 *
 * peer ADDRESS PORT WORD...
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

int main(int count, char **arguments)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    struct timeval patience = {20, 0};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (count < 3)
        return 2;
    address.sin_port = htons((unsigned short)atoi(arguments[2]));
    inet_pton(AF_INET, arguments[1], &address.sin_addr);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) != 0) {
        perror("connect");
        return 1;
    }
    for (int i = 3; i < count; i++) {
        char buffer[1000];
        size_t got = 0, length = strlen(arguments[i]);
        if (send(fd, arguments[i], length, 0) != (ssize_t)length) {
            perror("send");
            return 1;
        }
        while (got < length) {
            ssize_t n = recv(fd, buffer + got, length - got, 0);
            if (n <= 0) {
                perror("recv");
                return 1;
            }
            got += (size_t)n;
        }
        if (memcmp(buffer, arguments[i], length) != 0) {
            fprintf(stderr, "another echo than \"%s\"\n", arguments[i]);
            return 1;
        }
    }
    close(fd);
    return 0;
}
